-- Deletes versions of a job, with the last one the job; next stays, so that no number is given out twice.
-- ARGV: name, aliases that may go with them with a space between ("*": any), then the versions' numbers
-- Returns nothing | an alias that may not go; then nothing was deleted
local key = P .. 'job:' .. ARGV[1]
local may_go, doomed = {}, {}
for alias in string.gmatch(ARGV[2], '%S+') do
  may_go[alias] = true
end
for i = 3, #ARGV do
  doomed[ARGV[i]] = true
end

local fields, going, rest = redis.call('HGETALL', key), {}, -1
for i = 1, #fields, 2 do
  local field, value = fields[i], fields[i + 1]
  local alias, version = string.match(field, '^alias:(.+)$'), string.match(field, '^v(%d+)$')
  if alias and doomed[value] and not may_go['*'] and not may_go[alias] then
    return alias
  end
  local means = alias and value or string.match(field, '^content:') and value
    or version or string.match(field, '^types:v(%d+)$')
  if means and doomed[means] then
    going[#going + 1] = field
  elseif version then
    rest = math.max(rest, tonumber(version))
  end
end

redis.call('ZREMRANGEBYSCORE', P .. 'deleted', '-inf', now() - 30 * 86400)
for _, field in ipairs(going) do
  if string.match(field, '^v%d+$') then
    redis.call('ZADD', P .. 'deleted', now(), redis.call('HGET', key, field))
  end
  redis.call('HDEL', key, field)
end
if rest < 0 then
  redis.call('HDEL', key, 'latest')
  redis.call('SREM', P .. 'jobs', ARGV[1])
elseif doomed[redis.call('HGET', key, 'latest')] then
  redis.call('HSET', key, 'latest', rest)
end
return false
