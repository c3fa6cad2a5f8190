"""Foreign weights: readers of every published format, the key-table engine and the Hub. Nothing here knows a model."""
