-- Counts bytes of files against a run's cap, before they are written.
-- ARGV: id, attempt, bytes (negative gives back), cap
-- Returns 1 | 0 they do not fit | -1 when the attempt is over or superseded
local id, attempt, bytes, cap = unpack(ARGV)
local key = run_key(id)
local held = tonumber(redis.call('HGET', key, 'file_bytes') or '0')
if tonumber(bytes) <= 0 then
  if redis.call('EXISTS', key) == 1 then
    redis.call('HSET', key, 'file_bytes', string.format('%.0f', math.max(0, held + tonumber(bytes))))
  end
  return 1
end
if not may_write(id, attempt) then
  return -1
end
if held + tonumber(bytes) > tonumber(cap) then
  return 0
end
redis.call('HSET', key, 'file_bytes', string.format('%.0f', held + tonumber(bytes)))
return 1
