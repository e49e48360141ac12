"""Players of distillation: a teacher that stays as it is, and a student that draws in few steps."""
