-- Adds rows to a run's history, those that are not there yet.
-- ARGV: id, attempt, writer, number of the first row, cap in bytes, then the rows ("" = refused, only counted)
-- Returns how many were left out because the history is full, or -1 when the attempt is over or superseded
local id, attempt, writer, first, cap = unpack(ARGV, 1, 5)
if not may_write(id, attempt) then
  return -1
end
local key = run_key(id)
local field = 'rows:' .. writer
local taken = tonumber(redis.call('HGET', key, field) or '0')
local held = tonumber(redis.call('HGET', key, 'history_bytes') or '0')
local before, left_out = held, 0
for i = 6, #ARGV do
  local row = ARGV[i]
  if tonumber(first) + i - 6 >= taken and row ~= '' then
    if held + #row > tonumber(cap) then
      left_out = left_out + 1
    else
      redis.call('XADD', key .. ':history', '*', 'r', row)
      held = held + #row
    end
  end
end
redis.call('HSET', key, field, string.format('%.0f', math.max(taken, tonumber(first) + #ARGV - 5)))
redis.call('HINCRBY', key, 'history_bytes', held - before)
return left_out
