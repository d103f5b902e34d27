-- Removes an ended run, whose document is in the artifact store, and remembers where that is.
-- ARGV: id, digest of the document, then those of the blobs that what it holds needs
-- Returns OK | GONE | LIVE
local id = ARGV[1]
local key = run_key(id)
local r = redis.call('HMGET', key, 'queue', 'ended_at')
if not r[1] then
  return 'GONE'
end
if not r[2] then
  return 'LIVE'
end
redis.call('HSET', P .. 'archive', id, table.concat(ARGV, ' ', 2))
redis.call('ZREM', queue_key(r[1], 'finished'), id)
redis.call('DEL', key, key .. ':log', key .. ':events', key .. ':history', key .. ':system')
return 'OK'
