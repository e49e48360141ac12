"""What a run shows: log, held-out figures, sample pictures, the result opened again and its card."""
