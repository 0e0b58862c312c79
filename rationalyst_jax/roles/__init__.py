"""Models that can be asked, in process or behind an endpoint, and the driver of coroutines that ask them."""
