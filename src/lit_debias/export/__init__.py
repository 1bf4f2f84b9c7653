"""What leaves a run: the adapter's folder with its card, a merged model, and a repository on the hub."""
