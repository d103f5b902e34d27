-- Keys: job:<name>  hash, see create_job
-- ARGV: name, a version's field (v<n>), alias
-- Returns 1, or 0 when there is no such version (any more). Repeated, it changes nothing.
local key = P .. 'job:' .. ARGV[1]
if redis.call('HEXISTS', key, ARGV[2]) == 0 then
  return 0
end
redis.call('HSET', key, 'alias:' .. ARGV[3], string.sub(ARGV[2], 2))
return 1
