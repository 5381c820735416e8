"""Questions: where they come from, and the order in which a run meets them."""
