"""One module a verb; each has an `app` that presswork.cli hands over to."""
