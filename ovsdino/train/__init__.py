"""Training: dense supervision of nano, distillation of its text tower."""
