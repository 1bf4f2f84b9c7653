"""What is not about language models: text, files, devices, ranks, secrets, endpoints."""
