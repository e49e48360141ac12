"""Small files that change a model: LoRA and its relatives, and learned words (textual inversion)."""
