-- Gives a queue new settings. Runs enqueued before keep the resource config they were enqueued with.
-- ARGV: queue, the version it was read with, spec (JSON), then field and value in turn ("" deletes)
-- Returns OK | GONE | CHANGED
local key = queue_key(ARGV[1])
local version = redis.call('HGET', key, 'version')
if not version then
  return 'GONE'
end
if version ~= ARGV[2] then
  return 'CHANGED'
end
redis.call('HSET', key, 'spec', ARGV[3])
set_fields(key, ARGV, 4)
wake('queue ' .. ARGV[1])
return 'OK'
