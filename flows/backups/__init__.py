"""A whole project in one folder, and back: data, MLflow's history with people's feedback, Prefect's database, settings of DVC."""
