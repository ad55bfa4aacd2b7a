"""What ``prod9.load`` returns: models to call, and the volumes that they make."""
