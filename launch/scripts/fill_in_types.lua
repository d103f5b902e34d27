-- Keeps what the first finished run of a job's version told of it, beside the version, which never changes.
-- ARGV: name, version ("v3"), types (JSON)
-- Returns 1 | 0 they are known, or there is no such version
local key = P .. 'job:' .. ARGV[1]
if redis.call('HEXISTS', key, ARGV[2]) == 0 then
  return 0
end
return redis.call('HSETNX', key, 'types:' .. ARGV[2], ARGV[3])
