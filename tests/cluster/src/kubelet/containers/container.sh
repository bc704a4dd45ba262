# Becomes the program of a container, in a mount namespace of its own. Its root is this machine's, without what nobody else has
# of it, with the image's files and the pod's volumes; what is written to it is written to memory.
#
#   FOLDER ro|rw USER GROUP [SOURCE PATH ro|rw]... -- PROGRAM [ARGUMENT...]
set -euo pipefail
umask 022
folder=$1 mode=$2 user=$3 group=$4
shift 4
mount -t tmpfs -o mode=755 tmpfs "$folder"
root=$folder/root
mkdir "$folder"/{upper,work,root}
hidden=(home media mnt root run srv tmp)
# In the upper layer of an overlay, a device of this number says that the name is gone.
for name in "${hidden[@]}"; do mknod "$folder/upper/$name" c 0 0; done
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"
for name in "${hidden[@]}"; do mkdir "$root/$name"; done
chmod 1777 "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
while [ "$1" != -- ]; do
    source=$1 path=$root$2
    # What a link of this machine leads to may not be there.
    [ ! -L "$path" ] || rm "$path"
    if [ -d "$source" ]; then
        mkdir -p "$path"
    else
        mkdir -p "${path%/*}"
        [ -e "$path" ] || touch "$path"
    fi
    mount --bind "$source" "$path"
    [ "$3" = rw ] || mount -o remount,bind,ro "$path"
    shift 3
done
shift
[ "$mode" = rw ] || mount -o remount,bind,ro "$root"
touch "$folder.begun"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --groups "$group" --no-new-privs --bounding-set=-all --inh-caps=-all \
    --pdeathsig KILL -- "$@"
