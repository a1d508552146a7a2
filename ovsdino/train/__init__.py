"""Training. `trainer` is the loop of every run.

`dense` learns from pixel labels, `weak` from captions and pseudo-masks; `pretrain` makes a backbone and a text tower
before, `masks` the pseudo-masks. `start` leads from a YAML file to a trainer, `session` runs it for a command.
"""
