"""The figures of a report: `style` says how they look, `data` what they are drawn from, the others draw."""
