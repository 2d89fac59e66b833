-- Trial writes, by which it is known whether the disk takes any.
ALTER TABLE usage ADD COLUMN trials INTEGER NOT NULL DEFAULT 0;
