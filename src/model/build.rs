/// What a build of this program was made of, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Build<'a> {
    /// Our own version.
    pub version: &'a str,
    /// The Kubernetes release we stand in for, `major.minor.patch`.
    pub compatible_with: &'a str,
    /// The commit; `-dirty` follows where the work tree differed from it. Empty when not known, like what follows.
    pub commit: &'a str,
    /// When that commit was made, in UTC.
    pub date: &'a str,
    /// The compiler with its version.
    pub compiler: &'a str,
    /// How it was compiled and linked, such as `release,static`.
    pub flags: &'a str,
}
