"""From sample numbers to batches: pictures, captions and masks with all their draws."""
