-- Adds rows of system metrics. They carry a time stamp, so an equal one among the newest is the same one sent again.
-- ARGV: id, attempt, how many to keep, how many of the newest to compare with, then the rows
-- Returns 1, or -1 when the attempt is over or superseded
local id, attempt, keep, compare = unpack(ARGV, 1, 4)
if not may_write(id, attempt) then
  return -1
end
local stream = run_key(id) .. ':system'
local known = {}
for _, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', compare)) do
  known[entry[2][2]] = true
end
for i = 5, #ARGV do
  if not known[ARGV[i]] then
    redis.call('XADD', stream, 'MAXLEN', '~', keep, '*', 'r', ARGV[i])
  end
end
return 1
