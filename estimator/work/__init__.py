"""What is asked, and which plans can run."""
