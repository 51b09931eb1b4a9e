"""From raw collections, as they are published, to the layouts that datasets read."""
