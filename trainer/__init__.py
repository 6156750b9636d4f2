"""The reference trainer, which will run the plans that the estimator predicts."""
