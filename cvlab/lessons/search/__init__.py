"""04: hyperparameter search with Optuna."""
