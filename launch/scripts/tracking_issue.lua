-- Lets a key write an attempt.
-- ARGV: id, attempt, sha256 of the key
-- Returns 1, or 0 when the attempt is over or superseded
local id, attempt, token = unpack(ARGV)
if not may_write(id, attempt) then
  return 0
end
local key = run_key(id)
local tokens = redis.call('HGET', key, 'tokens') or ''
if not string.find(tokens, token, 1, true) then
  redis.call('HSET', key, 'tokens', tokens == '' and token or (tokens .. ' ' .. token))
end
redis.call('HSET', P .. 'token:' .. token, 'run', id, 'attempt', attempt)
return 1
