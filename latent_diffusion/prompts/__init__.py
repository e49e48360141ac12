"""The prompt language: weights, schedules, AND, BREAK, chunks, and the rewriting of plain prompts."""
