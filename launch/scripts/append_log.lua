-- Adds to a running job's log, and remembers in the same breath where in the target's log that was.
-- ARGV: id, epoch, nonce, cursor ("" = leave it), the full log file's length before and after, cap in characters,
--       then stream and text in turn
-- Returns OK | LOST | ENDED
local id, epoch, nonce, cursor, before, after, cap = unpack(ARGV, 1, 7)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused
end
local key = run_key(id)
local log = key .. ':log'
-- The same text sent again after a lost answer is already there. A length that is neither of the two is that of a Redis
-- that has lost its last second: what it lost is in the full log, and this goes on behind the gap.
if redis.call('HGET', key, 'log_bytes') == after and before ~= after then
  return 'OK'
end
local added = 0
for i = 8, #ARGV, 2 do
  redis.call('XADD', log, '*', 's', ARGV[i], 't', ARGV[i + 1])
  added = added + #ARGV[i + 1]
end
local held = redis.call('HINCRBY', key, 'log_held', added)
while held > tonumber(cap) do
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not first then
    break
  end
  redis.call('XDEL', log, first[1])
  held = redis.call('HINCRBY', key, 'log_held', -#first[2][4])
end
if cursor ~= '' then
  redis.call('HSET', key, 'log_cursor', cursor)
end
redis.call('HSET', key, 'log_bytes', after)
return 'OK'
