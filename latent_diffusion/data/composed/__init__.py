"""Pictures with true captions composed of the pictures of a source: colours, grounds, places, counts, pairs."""
