"""The method of SURF in plain torch: schedule, reshift, resample, flow, window, refiner, cost."""
