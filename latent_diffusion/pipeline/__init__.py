"""What a user runs to make pictures."""
