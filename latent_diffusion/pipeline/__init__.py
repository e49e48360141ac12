"""The pipelines that draw pictures."""
