"""Training on captions and masks: it learns, two processes equal one, no fault costs more than an interval."""
