//! One tiny process per task: owns the job's processes, outlives the agent, and tells the truth about how they ended.
