"""What every test may ask for; the services themselves are in ``services.py``."""

pytest_plugins = ["services"]
