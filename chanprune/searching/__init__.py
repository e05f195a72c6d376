"""A search by Optuna that any number of processes work on."""
