-- Sets a field of a run if it still holds what it was computed from.
-- ARGV: id, attempt, field, what it held ("" = nothing), what it shall hold
-- Returns 1 | 0 it holds something else by now | -1 when the attempt is over or superseded
local id, attempt, field, expected, value = unpack(ARGV)
if not may_write(id, attempt) then
  return -1
end
local key = run_key(id)
local held = redis.call('HGET', key, field) or ''
if held == value then
  return 1
end
if held ~= expected then
  return 0
end
redis.call('HSET', key, field, value)
return 1
