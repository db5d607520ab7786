"""From a folder of videos to shards that a refiner learns from."""
