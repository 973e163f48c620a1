"""The engine process: scheduler, block pool, runner, models; and the torch-free part that the HTTP process uses."""
