"""Model families as pure data: values only, found by name."""
