-- Tells whoever listens of runs that wait in a queue.
-- ARGV: their events (a JSON list), see launch.run_events
-- Returns how many listen
return publish('task.multi', ARGV[1], 'launch')
