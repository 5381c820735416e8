"""The training corpus ZPPO-77K from its two public sources (arXiv 2606.18216, App. B.1): `zppo data build zppo77k`."""
