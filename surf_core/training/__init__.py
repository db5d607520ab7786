"""Train refiners, mask predictors and the embedded models; never imported by inference."""
