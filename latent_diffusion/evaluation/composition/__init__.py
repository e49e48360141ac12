"""Whether a model draws combinations that it was never trained on: colours, grounds, counts, pairs, places."""
