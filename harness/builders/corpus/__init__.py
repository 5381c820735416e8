"""The training corpus ZPPO-77K from its two public sources (METHOD section 7): `zppo data build zppo77k`."""
