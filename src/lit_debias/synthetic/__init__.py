"""The synthetic data set: taxonomy, cases, responses, authors and the sieve."""
