"""The networks and the estimator: an island of torch that knows arrays, never a slide."""
