"""What a run will need before it starts: updates, passes, time and memory."""
