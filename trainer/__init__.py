"""The reference trainer, which runs the plans that the estimator predicts, and measures every step."""
