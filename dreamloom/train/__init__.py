"""The only room that knows Lightning: tasks, data modules, callbacks."""
